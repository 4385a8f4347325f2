"""What a person looks at: live page, report templates, and the engines' own dashboards behind one address."""

DISTRIBUTION = "ablate"
