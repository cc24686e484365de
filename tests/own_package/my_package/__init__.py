"""What a user of qat_lightning writes in a package of his own: one class of each kind."""
