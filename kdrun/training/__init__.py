"""Training of one or several students in one process."""
