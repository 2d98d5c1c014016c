"""What a set of finished runs says: statistics, tables, and measures of one network."""
