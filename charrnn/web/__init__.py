"""The playground: models behind a page and a small JSON API, for the person at this machine."""
