"""What the system does per second, byte and microsecond: `dynatok bench NAME`."""
