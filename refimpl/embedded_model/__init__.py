"""The small Japanese model that ships inside the package; see README.md beside this file."""
