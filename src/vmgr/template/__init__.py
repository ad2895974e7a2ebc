"""Templates: saved machines, fully booted, from which others start. A cache and nothing more."""

from vmgr.template.build import BuildPlan, build_template
from vmgr.template.files import Template, TemplateFiles
from vmgr.template.key import template_key

__all__ = ["BuildPlan", "Template", "TemplateFiles", "build_template", "template_key"]
