"""What an encoder has learnt, measured on frozen features: linear machines, neighbours, few shots."""
