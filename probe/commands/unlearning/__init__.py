"""What `probe unlearn` reads besides model and rows, and what it says of what it did."""
