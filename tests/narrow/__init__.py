"""A backend of int8 and bfloat16: bytes and dtypes through the whole path."""
