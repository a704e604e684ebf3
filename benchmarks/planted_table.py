def table(x): return str(len(x))
