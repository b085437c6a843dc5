"""Tables of points: read in any of the supported formats, found columns, units, and written back."""

from voxelprobe.points.columns import PointColumns, parse_point_columns
from voxelprobe.points.coordinates import Coordinates, read_coordinates
from voxelprobe.points.suggestions import UnitSuggestion, suggest_unit
from voxelprobe.points.tables import PointsTable, open_points
from voxelprobe.points.units import UnitConversion, parse_coord_resolution, unit_of_resolution
from voxelprobe.points.writing import TableWriter, check_output_suffix, open_writer

__all__ = [
    "Coordinates",
    "PointColumns",
    "PointsTable",
    "TableWriter",
    "UnitConversion",
    "UnitSuggestion",
    "check_output_suffix",
    "open_points",
    "open_writer",
    "parse_coord_resolution",
    "parse_point_columns",
    "read_coordinates",
    "suggest_unit",
    "unit_of_resolution",
]
