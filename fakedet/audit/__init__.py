"""What a detector could cheat on in a manifest."""
