"""Networks: the masked autoencoder, and the classifiers it stands before."""
