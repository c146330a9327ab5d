"""What is done with the rows."""
