"""The ground floor: the shape of everything that lies on disk. Imports no ray and no torch, and nothing above it."""
