"""Where raw tables come from: a directory, the CAVE service, its archive, or a synthetic release."""
