"""What the network is built from: convolutions, input layers, published weights, peers."""
