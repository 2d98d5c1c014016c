"""Evaluation of trained networks: load, measure, inspect, export."""
