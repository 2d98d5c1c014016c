"""One process trains one or several students."""
