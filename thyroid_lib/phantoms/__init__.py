"""Simulated ultrasound frames with known truth."""
