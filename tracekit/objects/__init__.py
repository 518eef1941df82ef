"""Traces and weights that lie in an object store: `s3://` URLs, fetched once into the cache folder."""
