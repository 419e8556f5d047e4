"""What a sweep file can name by a short name: each command as a function of its fields that gives numbers."""
