"""One trained network: find, load, measure, look into, export."""
