"""A wall round other people's schedulers: what knows one of them, or its entries, is in here."""
