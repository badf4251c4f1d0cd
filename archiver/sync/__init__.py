"""The algorithm: from a recorder's list to copies in the stores."""
