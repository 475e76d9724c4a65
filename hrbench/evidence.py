"""Evidence: the small sufficient statistics that inference leaves behind (stub of the interface)."""
