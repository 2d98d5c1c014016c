"""One file for each command: its words, what it calls, what it prints. Nothing imports a command but cli."""
