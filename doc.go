// Package highball holds nothing: import its packages one by one. See README.md.
package highball
