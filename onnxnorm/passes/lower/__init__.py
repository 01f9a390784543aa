"""Rules that turn onnxnorm ops into another op set, and the attachment of function bodies."""
