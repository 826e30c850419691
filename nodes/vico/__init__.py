"""ViCo's nodes: load, save, reference, apply, mask preview, train, checkpoint grid."""
