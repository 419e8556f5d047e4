"""What commands of the shell share: rows and models that were asked for, and a folder that appears whole."""
