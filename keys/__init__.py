"""Keys: the hierarchy under which a city's card data lies, and nothing that knows what a card is.

The centre is pure and synchronous, bytes in and bytes out: `secret`, `primitives`, `envelope`, `ring`,
`fingerprint`, `signing`, `manifest`, `audit`. Around it: where the root key lives (`root`, `root_file`), the
directory of wrapped keys (`keystore`), the table of data keys (`deks`), and the command line (`cli`).

    root key -> wraps KEK generations -> each wraps the DEK of a record -> seals the record
"""
