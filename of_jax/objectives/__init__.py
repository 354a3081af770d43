"""What training minimises: losses, terms added to them, and one task a kind of model."""
