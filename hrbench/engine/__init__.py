"""What runs on the device: from images through views and a method to native anomaly maps."""
