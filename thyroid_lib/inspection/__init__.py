"""What a network is made of, what it costs and how its wiring can be seen to work."""
