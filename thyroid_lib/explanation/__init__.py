"""What a network looks at, whether its maps can be believed, what else it could have used."""
