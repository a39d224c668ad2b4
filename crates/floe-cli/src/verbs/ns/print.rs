//! Trees of namespaces, or of processes in one, as JSON and as text.

use super::columns::{Column, Names};
use crate::output;
use floe_sandbox::namespaces::Namespace;
use serde_json::{Map, Value, json};

/// A line, and those below it.
#[derive(Debug)]
pub struct Line<'a> {
    /// Of what it tells; of a process in a namespace it is the first.
    pub namespace: &'a Namespace,
    /// Those below.
    pub children: Vec<Line<'a>>,
}

/// How it is printed.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// The column in which trees are drawn.
    pub drawn: Column,
    /// With a line of headings.
    pub headings: bool,
    /// With one blank between cells, and none in them.
    pub raw: bool,
}

/// Prints lines as JSON.
pub fn json_of(lines: &[Line<'_>], columns: &[Column], names: &mut Names) -> anyhow::Result<()> {
    let objects: Vec<Value> = lines.iter().map(|line| object(line, columns, names)).collect();
    output::json(&json!({ "namespaces": objects }))
}

/// Prints lines as text.
pub fn text_of(lines: &[Line<'_>], columns: &[Column], names: &mut Names, shape: Shape) {
    let mut rows: Vec<Vec<String>> = Vec::new();
    draw(lines, None, &mut |namespace, art| {
        let cells = columns.iter().map(|column| {
            let text = cell(&column.value(namespace, names));
            if *column == shape.drawn {
                format!("{art}{text}")
            } else {
                text
            }
        });
        rows.push(cells.collect());
    });
    let header: Vec<&str> = columns.iter().map(|column| column.name()).collect();
    let header = if shape.headings { &header[..] } else { &[] };
    if shape.raw {
        output::raw(header, &rows);
    } else {
        output::table(header, &rows);
    }
}

fn object(node: &Line<'_>, columns: &[Column], names: &mut Names) -> Value {
    let mut fields = Map::new();
    for column in columns {
        fields.insert(column.name().to_lowercase(), column.value(node.namespace, names));
    }
    if !node.children.is_empty() {
        let children: Vec<Value> = node
            .children
            .iter()
            .map(|child| object(child, columns, names))
            .collect();
        fields.insert("children".to_owned(), Value::Array(children));
    }
    Value::Object(fields)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.replace('\n', ","),
        other => other.to_string(),
    }
}

/// Tells `row` of each namespace with what is drawn in front of it; `before` is what is drawn in front of all of these,
/// `None` for roots.
fn draw<'a>(trees: &[Line<'a>], before: Option<&str>, row: &mut dyn FnMut(&'a Namespace, &str)) {
    for (index, node) in trees.iter().enumerate() {
        let is_last = index + 1 == trees.len();
        let (own, behind) = match before {
            None => (String::new(), String::new()),
            Some(before) if is_last => (format!("{before}└─"), format!("{before}  ")),
            Some(before) => (format!("{before}├─"), format!("{before}│ ")),
        };
        row(node.namespace, &own);
        draw(&node.children, Some(&behind), row);
    }
}
