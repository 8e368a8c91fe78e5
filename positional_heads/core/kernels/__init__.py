"""The sum over query, key and pair with an exponential in it, on several back ends."""
