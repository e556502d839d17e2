"""The fault suite: real processes are killed, cut off, filled up and lied to."""
