"""What `entrepot demo` tells its story with: content, a publisher and a customer."""
