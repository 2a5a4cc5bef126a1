"""A merge on its way out: adapters, whole models, recipes, and the hub. See `README.md`."""

from evox_evogm.command.exports.adapters import export_adapter, export_compressed
from evox_evogm.command.exports.exported import Exported, ExportFailed
from evox_evogm.command.exports.full_model import export_full_model
from evox_evogm.command.exports.hub import push_to_hub
from evox_evogm.command.exports.mergekit_recipe import export_mergekit_recipe
from evox_evogm.command.exports.published import read_published
from evox_evogm.command.licences import LicenceReport, licences_of, read_licence

__all__ = [
    "ExportFailed",
    "Exported",
    "LicenceReport",
    "export_adapter",
    "export_compressed",
    "export_full_model",
    "export_mergekit_recipe",
    "licences_of",
    "push_to_hub",
    "read_licence",
    "read_published",
]
