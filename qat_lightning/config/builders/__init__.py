"""The only constructors of a run's objects: configuration → model, data, module, Trainer."""
