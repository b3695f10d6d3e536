"""Wire formats that agents speak, one module each; all pure: bytes in, bytes out."""
