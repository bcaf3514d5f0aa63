"""Photographs of any size and number: packed once into mapped files, then decoded as needed."""
