"""One sum over query x key x pair with an exponential in it, on several back ends."""
