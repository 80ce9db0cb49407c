"""Bytes on disks, local and far: commits, locks, claims, tensors, remote files."""
