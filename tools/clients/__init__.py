"""What other people's clients make of the tools' schemas; each judge runs in an environment of its client's own.

A judge reads the tools and calls of them from standard input, converts the tools as its client does, and prints for
each tool either the schema that its model would see, or the arguments that its client would send for each call.
"""
