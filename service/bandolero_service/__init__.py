"""Bandolero as a service: API workers, learner, archiver, command line, embedded store."""
