# Text -> the lines of a C string literal.
s/[\\"]/\\&/g
s/^/"/
s/$/\\n"/
