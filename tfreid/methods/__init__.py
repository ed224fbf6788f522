"""What differs between the systems: networks, objectives and losses. Floor 3."""
