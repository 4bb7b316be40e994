"""Where raw tables come from: a folder, the CAVE service, its archive, a synthetic release."""
