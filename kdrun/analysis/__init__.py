"""What a set of finished runs says: statistics and tables. No torch here."""
