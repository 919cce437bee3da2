"""Bad input: the table of what strangers send, through the real service in a network of its own."""
